"""The small words of the contract: names, ids, counters, and how they are checked.

A name becomes part of a topic, so it is checked once, here, before it goes anywhere.
"""

import re
from typing import Annotated

from pydantic import Field, StringConstraints

NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"
ID = r"^[A-Za-z0-9._:-]{1,128}$"
RUN = r"^[A-Za-z0-9._:-]{1,32}$"
PARAMETER = r"^[A-Za-z_][A-Za-z0-9_.-]{0,63}$"

INTEGER_MAX = 2**53 - 1       # what every JSON reader can hold exactly
NUMBER_MAX = 1e300            # beyond this a measurement is a failure of class nonfinite

Name = Annotated[str, StringConstraints(pattern=NAME, strict=True)]
Id = Annotated[str, StringConstraints(pattern=ID, strict=True)]
Run = Annotated[str, StringConstraints(pattern=RUN, strict=True)]
Count = Annotated[int, Field(ge=1, le=INTEGER_MAX, strict=True)]
"""Trial numbers, fences, sequence numbers and epochs: from 1."""

is_name = re.compile(NAME).fullmatch
is_id = re.compile(ID).fullmatch
