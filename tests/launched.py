"""Stands in for trainer/main.py under a launcher: trains each line of arguments in turn, in one process.

`accelerate launch … tests/launched.py FILE OUT`: a line of FILE is a list of arguments in JSON; a line of OUT is the
exit code and what was printed. A launcher hides both, and takes seconds to start.
"""

import contextlib
import io
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from trainer.main import main

if __name__ == "__main__":
    results = []
    for line in Path(sys.argv[1]).read_text().splitlines():
        with contextlib.redirect_stderr(io.StringIO()) as text:
            code = main(json.loads(line))
        results.append(json.dumps([code, text.getvalue()]))
    if os.environ.get("RANK", "0") == "0":
        Path(sys.argv[2]).write_text("\n".join(results))
    os._exit(0)  # the threads of gloo sometimes abort an interpreter that takes its time to leave
