#!/bin/sh
# Probes Redis as the operator's user. Usage: ping.sh live|ready
#   ready: accepts commands; some may be rejected with an error
#   live: answers; may still be loading its data
set -eu
REDISCLI_AUTH=$(cat /etc/agentstream/credentials/password)
export REDISCLI_AUTH
reply=$(timeout 4 redis-cli --user operator ping 2>&1) || true
case "$1 $reply" in
  *PONG | *MISCONF* | *BUSY* | 'live '*LOADING*) exit 0 ;;
esac
echo "$reply" >&2
exit 1
