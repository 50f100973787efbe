#!/bin/sh
# A Receptor plugin: @NAME@:execute. After the hello every line on stdout is a result for the sender, the exit
# status is the result code, and stderr goes to the journal of the node.
set -eu

# The first line says who this is and what it can do. Reading comes after it.
echo '{"type":"hello","protocol":1,"name":"@NAME@","version":"0.1.0","actions":{"execute":{"payload":"none","output":"text","about":"Says hello from this host","example":null}}}'

# The daemon's hello, then the job; without one there is nothing to do.
read -r hello || exit 0
read -r job || exit 0

echo "hello from $(uname -n), asked by ${RECEPTOR_SENDER:-nobody}"
