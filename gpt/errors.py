"""The one exception that means "you, not the program".

Whatever a person can get wrong (a path, a flag, a character) raises `UserError` with a message of
one line that names what was given, what was expected and what to do. The command line prints that
line and exits with status 2. So it does for an OSError, the system's own no; any other exception is
a bug of ours and keeps its traceback.
"""


class UserError(ValueError):
    """A mistake of the user's that the command line reports as one line without a traceback."""
