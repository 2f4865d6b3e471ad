"""The sealed volume: header, records, keys, tables, and dm-crypt."""
