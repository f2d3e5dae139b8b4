"""What marks the errors that are shown as their message alone."""


class UserError(Exception):
    """Something that its user can mend, an input or the machine; the message says all of it."""
