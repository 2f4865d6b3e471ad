"""Program `sealed-local broker`: KBS-compatible key broker and volume register."""
