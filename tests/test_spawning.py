"""The server of forks."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import os
from offbeat.runtime.spawning import server_of_forks

if __name__ == "__main__":
    process = server_of_forks().Process(target=print, args=("forked",))
    process.start()
    process.join()
    print(process.exitcode, os.environ.get("PYTHONSAFEPATH"))
"""


def test_modules_of_the_current_folder_are_not_taken_for_python_s(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    script = tmp_path / "scripts" / "script.py"
    script.write_text(SCRIPT)
    (tmp_path / "queue.py").write_text("raise RuntimeError('the wrong queue')")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"}
    ended = subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.stderr == ""
    assert ended.stdout == "forked\n0 None\n"
