"""Jobs on a Ray cluster, the duplicate audit, and the demonstration of the whole product."""
