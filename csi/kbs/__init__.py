"""What guest and broker say to each other: messages, keys, init-data, the register's records and calls. No I/O."""
