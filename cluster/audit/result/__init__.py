"""From pairs with evidence to conclusions, as plain data: states, accuracies, groups, exclusions, canaries, review.

In: tables of pairs, predictions, verdicts of people. Out: tables, lists and figures, as pure functions of them. Uses
`base` and `trainer.scores`; reads pictures for canaries only.
"""
