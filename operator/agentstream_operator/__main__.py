"""`python -m agentstream_operator` is the command `agentstream`."""

from agentstream_operator.cli import main

main()
