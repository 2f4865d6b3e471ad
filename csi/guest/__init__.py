"""Program `sealed-local guest`: attest, unlock, mount. Runs inside the confidential VM."""
