"""The errors that a user of the reference implementation can cause."""


class InputError(ValueError):
    """Bad input, told in one line that names the structure, file or value at fault."""


class NotFinite(InputError):
    """Training came to numbers that are none, told with the batch that did it."""
