"""Program `sealed-local node`: the CSI plugin. Trusted with disks; it never holds a key."""
