"""The near-duplicate audit: which pictures of a test set have copies in a pretraining set, and what that is worth.

In: an `AuditConfig` with two datasets (or one, for duplicates within it), predictions, and an `AuditJob`. Out: a report
of HTML pages, and tables of pairs, states and exclusions. Uses `pipeline` and `trainer.scores`, none of the services.
"""
