"""The one exception that a user's mistake becomes: a single line that says what, where and what to do.

It is raised where the cause is known; only the command (`train_adn.py`) turns it into exit code 2.
"""


class UserError(Exception):
    """Something the user can mend. The message is one line, without a traceback."""
