#!/bin/sh
# What the container runs: `serve`, also where only its options are given, or any other `headrace` command.
set -eu

# The image's own models stand in the cache by links, so that they take no room in a volume. Where the cache cannot be
# written to, the server says so.
folder=$HEADRACE_CACHE__DIR/embedded
(umask 077 && mkdir -p "$folder") 2>/dev/null || true
for model in /usr/share/headrace/models/embedded/*; do
    [ -e "$folder/${model##*/}" ] || ln -sfn "$model" "$folder/" 2>/dev/null || true
done

case "${1:-serve}" in
serve)
    [ $# -eq 0 ] || shift
    ;;
-*) ;;
*)
    exec headrace "$@"
    ;;
esac
# Whoever can reach the container can reach the server, so that one without keys gets a first one.
exec headrace serve --make-key "$@"
