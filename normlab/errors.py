"""The base of errors that a user can mend."""


class UserError(ValueError):
    """Something that was given cannot be used.

    The message names what was given, what was expected and the remedy; the command line prints it
    without a traceback.
    """
