"""A value that must not be seen: keys and passphrases. Does not wipe memory, which CPython can't promise."""

import hmac


class Secret:
    """Secret bytes that never show in logs, tracebacks or f-strings.

    The bytes come out only by `reveal()`, a word that is easy to search for. Comparison takes constant time.
    Truth testing and length are errors: both invite leaking decisions.
    """

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = bytes(value)

    def reveal(self) -> bytes:
        """The secret bytes. Call it only where they are handed to a cipher or to a child's stdin."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(********)"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._value, other._value)

    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> bool:
        raise TypeError("a secret has no truth value; compare with None instead")

    def __reduce__(self) -> str:
        raise TypeError("a secret can't be pickled")
