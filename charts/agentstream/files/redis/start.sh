#!/bin/sh
# Starts Redis with the operator's password from the Secret and the saved users of the agents. The password is in neither
# an argument nor a log.
set -eu
umask 077
users=/data/users.acl
hash=$(tr -d '\n' </etc/agentstream/credentials/password | sha256sum | cut -d ' ' -f 1)
{
  # `default` cannot log in, but many servers, Redis 8.0 among them, load their append-only file as this user, and skip
  # commands in a transaction, as functions write them, for which it lacks the permission
  echo 'user default off resetpass ~* &* +@all'
  echo "user operator on #$hash ~* &* +@all"
  if [ -e "$users" ]; then grep -Ev '^user (default|operator) ' "$users" || true; fi
} >"$users.new"
mv "$users.new" "$users"
# Valkey 9 counts no reply that it sends by reference towards a limit (valkey-io/valkey#2396): have it copy them
case $(redis-server --version) in
  'Valkey server v=9.'*) set -- --min-string-size-avoid-copy-reply 2147483647 ;;
  *) set -- ;;
esac
exec redis-server /etc/agentstream/redis/redis.conf "$@"
