#!/bin/sh
# Asks the server for a sign of life, as the operator. Usage: ping.sh live|ready
#   ready: it takes commands, though it may refuse some, and then says why
#   live: it answers, though it may still be loading its data
set -eu
REDISCLI_AUTH=$(cat /etc/agentstream/credentials/password)
export REDISCLI_AUTH
reply=$(timeout 4 redis-cli --user operator ping 2>&1) || true
case "$1 $reply" in
  *PONG | *MISCONF* | *BUSY* | 'live '*LOADING*) exit 0 ;;
esac
echo "$reply" >&2
exit 1
