"""What every part of the configuration is made of: the section, and types of values that several of them use."""

from typing import Annotated

from pydantic import BaseModel, ByteSize, ConfigDict, Field, StringConstraints

MIB = 1024**2

Size = Annotated[ByteSize, Field(gt=0)]  # a number of bytes, or `3GiB`
ModelName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@-]{0,199}$")]
TenantName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@-]{0,63}$")]
BindingName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,100}$")]  # a key under compose's `models:`
VariableName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,199}$")]


class Section(BaseModel):
    """Refuses unknown keys and never changes."""

    model_config = ConfigDict(extra="forbid", frozen=True)
