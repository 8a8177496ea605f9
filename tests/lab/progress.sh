# Steps with a tick and the time they took; on a terminal also a spinner. Sourced, never run.
#
#   step "What is done" COMMAND…    runs COMMAND with its output in $LOG
#   note TEXT                       shows TEXT beside the spinner of the step that runs
#   step_failed                     to be called by an EXIT trap: says which step failed, and why

# A step's own output goes to the log; what people read goes where it went when this was sourced.
# Programs that outlive the script are started with 7>&- so that they do not keep it open.
exec 7>&1
STEP='' STEP_BEGAN=0 SPINNER='' STEPS_BEGAN=$SECONDS
if [ -t 1 ]; then
    TERMINAL=yes GREEN=$'\e[32m' RED=$'\e[31m' DIM=$'\e[2m' BOLD=$'\e[1m' PLAIN=$'\e[0m' CLEAR=$'\r\e[K'
else
    TERMINAL=no GREEN='' RED='' DIM='' BOLD='' PLAIN='' CLEAR=''
fi
case ${LC_ALL:-${LC_CTYPE:-${LANG:-}}} in
*[Uu][Tt][Ff]*) TICK='✔' CROSS='✘' FRAMES='⠋ ⠙ ⠹ ⠸ ⠼ ⠴ ⠦ ⠧ ⠇ ⠏' ;;
*)              TICK='[ok]' CROSS='[failed]' FRAMES='| / - \' ;;
esac

note() { printf '%s' "$*" >"$LOG.note" 2>/dev/null || true; }

spin() {
    local frame shown='' began=$1 text=$2 parent=$3 line width
    while kill -0 "$parent" 2>/dev/null; do
        if [ "$TERMINAL" = yes ]; then
            for frame in $FRAMES; do
                line=$(head -c 300 "$LOG.note" 2>/dev/null || true)
                width=$(( ${COLUMNS:-80} - ${#text} - 14 ))
                [ "$width" -gt 0 ] || width=1
                printf '%s%s %s %s%4d s %s%s' "$CLEAR" "$frame" "$text" "$DIM" $((SECONDS - began)) "${line:0:$width}" "$PLAIN"
                sleep 0.1
            done
        else
            # A log has no use for a spinner, but a reader wants to see that it goes on.
            sleep 20 >/dev/null 2>&1
            line=$(head -c 300 "$LOG.note" 2>/dev/null || true)
            [ "$line" = "$shown" ] || printf '     %s: %s\n' "$text" "$line"
            shown=$line
        fi
    done
}

stop_spinner() {
    [ -n "$SPINNER" ] || return 0
    { kill "$SPINNER" && wait "$SPINNER"; } 2>/dev/null || true
    SPINNER=''
    printf '%s' "$CLEAR" >&7
}

elapsed() { awk -v b="$1" -v n="${EPOCHREALTIME/,/.}" 'BEGIN { printf "%.1f s", n - b }'; }

step() {
    STEP=$1
    shift
    STEP_BEGAN=${EPOCHREALTIME/,/.}
    : >"$LOG.note"
    spin "$SECONDS" "$STEP" $$ >&7 9>&- &
    SPINNER=$!
    printf '\n== %s\n' "$STEP" >>"$LOG"
    "$@" >>"$LOG" 2>&1
    stop_spinner
    printf '%s%s%s %s %s%s%s\n' "$GREEN" "$TICK" "$PLAIN" "$STEP" "$DIM" "$(elapsed "$STEP_BEGAN")" "$PLAIN" >&7
    STEP=''
}

step_failed() {
    [ -n "$STEP" ] || return 0
    stop_spinner
    printf '%s%s %s%s failed after %s\n' "$RED" "$CROSS" "$STEP" "$PLAIN" "$(elapsed "$STEP_BEGAN")" >&7
    [ -f "$LOG" ] || return 0
    # What the step itself wrote, its end.
    awk '/^== / { text = ""; next } { text = text $0 "\n" } END { printf "%s", text }' "$LOG" | tail -n 20 | sed 's/^/    /' >&7
}
