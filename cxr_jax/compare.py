"""`python -m cxr_jax.compare RUN RUN … [--classes] [--html FILE]`

Prints where the configs of finished runs differ, and their AUCs beside one another; the first is what the others are compared with.
A folder of runs, such as a sweep's, stands for the runs in it. A user's mistake ends in one line and exit status 1.
"""

from __future__ import annotations

import sys

from absl import flags

from cxr_jax import mesh
from cxr_jax.report import compare
from cxr_jax.tables import UserError

CLASSES = flags.DEFINE_bool("classes", False, "Print each class by itself, too.")
HTML = flags.DEFINE_string("html", "", "Write all tables as one page, to this file.")


def main(argv: list[str]) -> int:
    """Returns the exit status: 0, or 1 for a user's mistake."""
    try:
        folders = flags.FLAGS(argv)[1:]
        mesh.keep_compiled_programs()
        found = compare.read(folders)
        told = compare.text(found, classes=CLASSES.value)
        if HTML.value:
            compare.write(found, HTML.value)
            told += f"\n\npage: {HTML.value}"
    except (UserError, flags.Error) as error:
        print(f"error: {str(error).splitlines()[0]}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error.filename2 or error.filename or HTML.value}: {error.strerror or error}", file=sys.stderr)
        return 1
    print(told)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
