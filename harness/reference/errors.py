"""The one error a user of the reference implementation can cause."""


class InputError(ValueError):
    """Bad input, told in one line that names the structure, file or value at fault."""
