"""Writes the published JSON Schema of messages, or checks that it is up to date.

`python -m agentstream.protocol.generate docs/reference/message.schema.json [--check]`
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from agentstream.protocol.envelope import message_schema


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the schema to a file. Returns 1 if the file differs and `--check` is given."""
    parser = argparse.ArgumentParser(description="Writes the JSON Schema of AgentStream messages.")
    parser.add_argument("path", type=Path, help="the file")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the file is out of date")
    options = parser.parse_args(arguments)
    text = json.dumps(message_schema(), indent=2) + "\n"
    if not options.check:
        options.path.parent.mkdir(parents=True, exist_ok=True)
        options.path.write_text(text, encoding="utf-8")
        return 0
    if options.path.exists() and options.path.read_text(encoding="utf-8") == text:
        return 0
    sys.stderr.write(f"{options.path} is out of date: run `make generate`\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
