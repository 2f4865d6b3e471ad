"""Regular expressions that people write into files of settings."""

import re
from typing import Final

UNUSABLE: Final = (re.error, ValueError, OverflowError, RecursionError)
"""What compiling one raises: flags that exclude one another, numbers of too many digits, brackets in brackets."""
