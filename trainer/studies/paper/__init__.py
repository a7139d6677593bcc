"""The paper's tables and figures as descriptions, one module each; figures are of its version 3 (May 2020)."""
