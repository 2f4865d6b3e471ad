"""Pure decisions of the node: (observed, wanted) to steps, or an error. An empty plan is idempotent success."""
