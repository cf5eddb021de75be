#!/usr/bin/env bash
# Runs a study, or goes on with it where an earlier job was cut off: safe to start again and again, as queues do.
#
#     launch-or-resume.sh STUDY.yaml OUT [options of fat-ray launch]
#
# RAY_ADDRESS names the cluster. PID_FILE, if set, gets the id of the process that SIGTERM makes save checkpoints and end.
set -euo pipefail

if [[ $# -lt 2 ]]; then
    echo "usage: launch-or-resume.sh STUDY.yaml OUT [options of fat-ray launch]" >&2
    exit 2
fi
study=$1 out=$2
shift 2

name=$(sed -n "/^name:/{s/^name:[[:space:]]*[\"']\{0,1\}\([a-z0-9_-]*\).*/\1/p;q}" "$study")
if [[ -z $name ]]; then
    echo "launch-or-resume.sh: $study has no line such as 'name: quickstart'" >&2
    exit 2
fi
if [[ -n ${PID_FILE:-} ]]; then
    echo $$ > "$PID_FILE"  # exec keeps the id
fi
if [[ -e $out/$name/study.json ]]; then
    exec fat-ray resume "$out/$name"
fi
exec fat-ray launch "$study" --out "$out" "$@"
