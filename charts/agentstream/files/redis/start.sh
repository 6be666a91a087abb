#!/bin/sh
# Starts the server with the operator's user as the Secret has it now; the agents' users stay as they were saved.
# The password itself reaches neither an argument nor a log.
set -eu
umask 077
users=/data/users.acl
hash=$(tr -d '\n' </etc/agentstream/credentials/password | sha256sum | cut -d ' ' -f 1)
{
  # nobody gets in as `default`, but many servers, Redis 8.0 among them, load their append-only file in its name: what
  # it may not do in a transaction, as functions do, they leave out
  echo 'user default off resetpass ~* &* +@all'
  echo "user operator on #$hash ~* &* +@all"
  if [ -e "$users" ]; then grep -Ev '^user (default|operator) ' "$users" || true; fi
} >"$users.new"
mv "$users.new" "$users"
exec redis-server /etc/agentstream/redis/redis.conf
