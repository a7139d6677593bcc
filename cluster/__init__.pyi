"""The public names of `cluster`: each is imported when it is first asked for."""

from .audit.base.stored_tasks import AuditJob as AuditJob
from .audit.base.tables import (
    AuditConfig as AuditConfig,
    AuditTables as AuditTables,
)
from .audit.coordinator import (
    pin_sides as pin_sides,
    run_audit as run_audit,
)
from .audit.report.publish import publish_audit as publish_audit
from .stack.jobs import (
    connect as connect,
    follow as follow,
    submit as submit,
)
from .stack.services import (
    Stack as Stack,
    start_stack as start_stack,
    stop_stack as stop_stack,
)
