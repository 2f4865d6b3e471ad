"""What the verbs of `sealed-local broker` do. They may run beside a serving broker: the database takes turns."""
