"""The small words of the contract: names, ids, counters, and how they are checked.

A name becomes part of a topic, so it is checked once, here, before it goes anywhere.
"""

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, StringConstraints

NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"
ID = r"^[A-Za-z0-9._:-]{1,128}$"
RUN = r"^[A-Za-z0-9._:-]{1,32}$"
PARAMETER = r"^[A-Za-z_][A-Za-z0-9_.-]{0,63}$"

INTEGER_MAX = 2**53 - 1       # what every JSON reader can hold exactly
NUMBER_MAX = 1e300            # beyond this a measurement is a failure of class nonfinite

Name = Annotated[str, StringConstraints(pattern=NAME, strict=True)]
Id = Annotated[str, StringConstraints(pattern=ID, strict=True)]
Run = Annotated[str, StringConstraints(pattern=RUN, strict=True)]


def whole(value: Any) -> Any:
    """7.0 is 7: JSON has one kind of number."""
    return int(value) if type(value) is float and value.is_integer() else value


Count = Annotated[int, BeforeValidator(whole), Field(ge=1, le=INTEGER_MAX, strict=True)]
"""Trial numbers, fences, sequence numbers and epochs: from 1."""

is_name = re.compile(NAME).fullmatch
is_id = re.compile(ID).fullmatch
