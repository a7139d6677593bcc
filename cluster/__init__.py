"""Jobs on a Ray cluster, the duplicate audit, and the demonstration of the whole product.

What users import comes from here (`from cluster import start_stack, AuditConfig`), loaded when it is asked for.
In: datasets of `pipeline`, predictions of `trainer`. Out: running services, jobs, and audit reports.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
