"""What a user can mend, told apart from what is a defect of this program."""


class UserError(ValueError):
    """An input is wrong and the message says how to mend it.

    The command line prints the message alone, without a traceback, and exits with status 2.
    """
