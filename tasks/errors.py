"""The one exception for input that a user has to mend, and how others are quoted in it."""


class InputError(ValueError):
    """Wrong input from outside: a file, a line, a column, a flag, a run folder.

    The message is one line that names the place and says what to do; programs print it without a traceback and
    leave with exit code 2. Anything else that is raised is a fault of the program and keeps its traceback.
    """


def one_line(error: BaseException | str) -> str:
    """Return a message, or that of an error of some library, without its line breaks."""
    return " ".join(str(error).split()) or type(error).__name__
