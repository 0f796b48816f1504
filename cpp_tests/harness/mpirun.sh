#!/bin/sh
# Usage: mpirun.sh RANKS PROGRAM [ARGUMENTS]. Runs mpirun, and kills it if it is still there MPIRUN_PATIENCE seconds (10) after its
# last rank has ended. The status is that of the ranks then. mpirun of Open MPI 4.1.4 can wait for a thread of its own forever, in
# PMIx_server_finalize.
set -eu
ranks=$1
shift
ended=$(mktemp -d)
trap 'rm -rf "$ended"' EXIT
trap 'kill "$mpirun" "$watch" 2>/dev/null; exit 1' HUP INT TERM
# A rank that ends writes its status. mpirun's SIGTERM reaches the program as well, so the shell can wait for its end.
mpirun -n "$ranks" sh -c 'trap : TERM; status=0; "$@" || status=$?; echo "$status" >"$0/$OMPI_COMM_WORLD_RANK"; exit "$status"' \
    "$ended" "$@" &
mpirun=$!
(
    left=${MPIRUN_PATIENCE:-10}
    while [ "$left" -gt 0 ] && kill -0 "$mpirun"; do
        sleep 1
        if [ "$(find "$ended" -type f | wc -l)" = "$ranks" ]; then left=$((left - 1)); fi
    done
    if [ "$left" = 0 ]; then
        : >"$ended/killed"
        kill -9 "$mpirun"
    fi
) </dev/null >/dev/null 2>&1 &
watch=$!
status=0
wait "$mpirun" || status=$?
kill "$watch" 2>/dev/null || true
if [ ! -e "$ended/killed" ]; then exit "$status"; fi
echo "mpirun did not end after its ranks; it was killed" >&2
[ "$(cat "$ended"/[0-9]* | grep -cx 0)" = "$ranks" ] || exit 1
