#!/bin/sh
# A bayesd worker with one slot:  bayesd-worker.sh NAME STUDY 'python train.py "$BAYESD_PARAMS"'
# The value is the last line that the command prints; an exit status other than 0 is a failure. See README.md.
#
# Whatever happens arrives as one line in one pipe: a message, a tick of the clock, the end of the training. The loop at
# the bottom takes a line at a time. One file, $lease, holds what must outlive a kill -9: the grant, how often its
# training was started and, once there is one, its tell. It is removed when the receipt for the tell has come.
set -uf
[ $# -eq 3 ] || { echo "usage: $0 NAME STUDY COMMAND" >&2; exit 2; }
name=$1 study=$2 command=$3
host=${BAYESD_BROKER_HOST:-127.0.0.1} port=${BAYESD_BROKER_PORT:-1883} root=${BAYESD_ROOT:+$BAYESD_ROOT/}bayesd/1
tick_s=${BAYESD_TICK_S:-1} ask_s=${BAYESD_ASK_S:-30} tell_s=${BAYESD_TELL_S:-10} leave_s=${BAYESD_LEAVE_S:-10}
spool=${BAYESD_SPOOL:-${XDG_STATE_HOME:-$HOME/.local/state}/bayesd/shell/$name} lease=$spool/lease.json
run=$(od -An -N8 -tx1 /dev/urandom | tr -d ' ')     # one word for this process: the next one is another run
key='' told='' training='' settled=' ' fenced='' log='' nonce='' count=0 sure='' doubted=''    # key is study.trial.fence of what $lease holds
asks=1 wanted=1 beat_s=$ask_s beat_at=0 say_at=0 leave_at='' ear=''
die() { echo "bayesd-worker $name: $1" >&2; exit 1; }

# --- What we say ---------------------------------------------------------------------------------------------------
# Each message has its own connection, and QoS 1 keeps them in order. The exit status of mosquitto_pub says nothing: a
# forbidden publish ends with 0 too. Only a receipt counts, and until it comes we say it again.
publish() {
    [ -z "$pads" ] || [ "$log" ] || { cat >/dev/null; return; }     # Nobody has said yet for which log we sign.
    seal "$@" | timeout 20 mosquitto_pub -h "$host" -p "$port" -q 1 -t "$root/from/$name/$1" -s
}

# With a key: the message of this kind, and of the log that its grant came from, in its envelope. Receipts answer to its
# id, so the id of a tell says which process may believe them. openssl gets the key in no argument, where ps shows it.
seal() {
    [ "$pads" ] || { cat; return; }
    text=$(jq -c --arg kind "$1" --arg run "$run" --arg nonce "$nonce" --argjson count "$count" \
        'if $kind == "tell" then .id += ":" + $run else . + {$nonce, $count} end')
    jq -nc --arg signed "$text" --arg mac "$(mac "${2:-$log}" "from/$name/$1" "$text")" '$ARGS.named'
}
mac() {
    printf 'bayesd/1\n%s\n%s\n%s' "$1" "$2" "$3" | cat "$pads.i" - | openssl dgst -sha256 -binary | cat "$pads.o" - |
        openssl dgst -sha256 -r | cut -c 1-64
}
pad() {     # The key as HMAC wants it, each byte changed with this one.
    hex=$(cat "$BAYESD_SIGN_KEY_FILE") || die "cannot read the key $BAYESD_SIGN_KEY_FILE"
    case $hex in *[!0-9a-fA-F]*) hex='' ;; esac
    [ ${#hex} -eq 64 ] || die "no key of 64 hex digits in $BAYESD_SIGN_KEY_FILE"
    hex=${hex}0000000000000000000000000000000000000000000000000000000000000000
    while [ "$hex" ]; do
        rest=${hex#??}
        printf "\\$(printf %03o $((0x${hex%"$rest"} ^ $1)))"
        hex=$rest
    done
}

beat() {
    count=$((count + 1))
    [ "$fenced" ] || { [ -z "$key" ] || cat "$lease"; } | jq -nc --arg run "$run" --arg ask "$run.$asks" \
        '{$run, leases: [inputs | [.study, .trial, .fence]]} | .asks = if .leases == [] then [$ask] else [] end' |
        publish beat
    beat_at=$((now + beat_s))
}

say() {     # The tell that we owe; or, when the slot is free, the ask, which wanted=0 withdraws.
    count=$((count + 1))
    if [ "$told" ]; then
        jq -c .tell "$lease" | publish tell "$(jq -r '.log // ""' "$lease")"; say_at=$((now + tell_s))
    elif [ -z "$key$training$fenced" ]; then
        jq -nc --arg id "$run.$asks" --arg run "$run" --arg study "$study" --argjson n "$wanted" '$ARGS.named' |
            publish ask
        say_at=$((now + ask_s))
    fi
}

# --- What we keep --------------------------------------------------------------------------------------------------
keep() {
    jq -c "$@" >"$lease.new" && sync "$lease.new" && mv "$lease.new" "$lease" && sync "$spool" || die "cannot write $lease"
}
tell() { keep --argjson fields "$1" '.tell = $fields + {id: "t.\(.study).\(.trial).\(.fence)", study, trial, fence}' <"$lease"; told=1; }
settle() { settled="$settled$key " key='' told=''; rm -f "$lease"; }    # Grants of a settled key are ignored.

# --- The training --------------------------------------------------------------------------------------------------
train() {   # Takes the grant on its input. A session of its own lets a stop reach each process of the training.
    keep --arg log "${pads:+$log}" '.starts += 1 | if $log == "" then . else .log //= $log end'
    beat_s=$(jq '[.lease_s / 3 | floor, 1] | max' "$lease") training=$key started=$now
    BAYESD_PARAMS=$(jq -c .params "$lease") BAYESD_GRANT=$(jq -c . "$lease") setsid sh -c \
        'trap : TERM; sh -c "$1" </dev/null >"$2" 4>&-; echo "ended $3 $?" >&4' \
        bayesd-trial "$command" "$spool/out" "$key" 3<&- 9<&- &
    echo $! >"$spool/pid.$run"
}

halt() { [ -z "$training" ] || kill -TERM "-$(cat "$spool/pid.$run")" 2>/dev/null; }

result() {  # What the tell says about a training that ended by itself with this exit status.
    jq -nc --argjson status "$1" --argjson seconds $((now - started)) \
        --arg last "$(grep -v '^[[:space:]]*$' "$spool/out" | tail -n 1 | head -c 50000)" '
        ($last | fromjson? // null) as $value | {$seconds} +
        if $status != 0 then {state: "fail", error: "exit status \($status): \($last[:4000])"}
        elif $value | type == "object" then $value
        elif $last | test("^[+-]?(nan|inf(inity)?)$"; "i") then {value: $last}    # one jq reads nan, the next does not
        elif $value | type == "number" then {$value}
        else {state: "fail", class: "other", error: "no number in the last line: \($last[:4000])"} end'
}

# --- What we hear --------------------------------------------------------------------------------------------------
listen() {
    mosquitto_sub -h "$host" -p "$port" -i "bayesd-$name-$run" -q 1 -F %j -t "$root/to/$name/+" -t "$root/daemon" &
    ear=$!
}
words='def word: . // "-" | tostring | gsub("[^A-Za-z0-9._:-]"; "_") | if . == "" then "-" else . end;
    [(.topic / "/" | last), (.payload | fromjson | "\(.study).\(.trial).\(.fence)", .id, .run, .status, .reason,
    (.retry_after_s // 0 | ceil), .ask) | word] | join(" ")'

doubt() {   # Once: it is the same each time, or a broker that wants to fill our log.
    [ "$doubted" ] || echo "bayesd-worker $name: ignored, and so will be all that our key did not sign: $line" >&2
    doubted=1
}
believe() { # With a key: whether a line is the daemon's word to this process; it is then as if it had come unsigned.
    [ "$pads" ] || return 0
    set -- "$(printf '%s\n' "$line" | jq -r '.topic / "/" | last')"
    if [ "$1" = daemon ]; then      # A claim. A log that has proved itself is not given up for another name.
        set -- "$(printf '%s\n' "$line" | jq -r '.payload | fromjson | .log')"
        [ -z "$sure" ] || [ "$1" = "$log" ] || return 1
        log=$1 nonce=$(printf '%s\n' "$line" | jq -r '.payload | fromjson | .nonce // ""')
        return 0
    fi
    text=$(printf '%s\n' "$line" | jq -r '.payload | fromjson | .signed | strings' 2>/dev/null)
    [ "$text" ] && [ "$(mac "$log" "to/$name/$1" "$text")" = "$(printf '%s\n' "$line" | jq -r '.payload | fromjson | .mac' 2>/dev/null)" ] ||
        { doubt; return 1; }
    [ "$1" != stop ] || [ "$sure" ] || return 1
    line=$(printf '%s\n' "$line" | jq -ce --arg text "$text" --arg kind "$1" --arg run "$run" '
        .payload = ($text | fromjson | if $kind == "stop" or .run == $run then .
        elif $kind == "receipt" and (.id | endswith(":" + $run)) then .id |= rtrimstr(":" + $run)
        else empty end | tojson)') && sure=1
}

hear() {    # kind key id run status reason retry_after_s ask
    case ${1:-} in      # Nothing at all when the message is not what we expect.
    daemon) beat; say ;;    # Retained, so it comes after every connect, and whenever the epoch changes.
    grant)
        [ "$4" = "$run" ] || return
        [ "$8" != "$run.$asks" ] || asks=$((asks + 1))
        case $settled in *" $2 "*) return ;; esac
        grant=$(printf '%s\n' "$line" | jq -c '.payload | fromjson')
        if [ "$2" = "$key" ]; then say      # Trained already: all it can want is the tell once more.
        elif [ "$key$training$leave_at$fenced" ]; then
            # Not kept: when this tell is lost the grant comes again, because no beat lists it.
            printf '%s\n' "$grant" | jq -c '{id: "t.\(.study).\(.trial).\(.fence)", study, trial, fence, state: "released"}' |
                publish tell
        else
            key=$2
            train <<E
$grant
E
            beat
        fi ;;
    stop)
        if [ "$2" != "$key" ]; then settled="$settled$2 "
        elif [ -z "$told" ]; then       # A tell is sent until its receipt, whatever has been stopped.
            halt
            if [ "$6" = pruned ]; then tell '{"state":"pruned"}'; else settle; fi
            say
        fi ;;
    receipt)
        if [ "$told" ] && [ "$3" = "t.$key" ]; then
            if [ "$7" -gt 0 ]; then say_at=$((now + $7)); return; fi
            [ "$5" != rejected ] || cp "$lease" "$spool/rejected/$key.json"
            settle; say
        elif [ "$4.$5.$6" = "$run.rejected.name-in-use" ]; then     # Another process has this name now.
            fenced=1; halt
            [ "$told" ] || settle
        elif [ "$4" = "$run" ] && [ "$3" = "$run.$asks" ]; then
            case $5 in
            waiting) [ "$7" -eq 0 ] || say_at=$((now + $7)) ;;
            closed) [ "$key$training" ] || exit 0; asks=$((asks + 1)) ;;
            duplicate) asks=$((asks + 1)); say ;;
            rejected) [ "$7" -gt 0 ] || die "the daemon refuses to be asked: $6"; say_at=$((now + $7)) ;;
            esac
        fi ;;
    esac
}

# --- The loop ------------------------------------------------------------------------------------------------------
mkdir -p "$spool/rejected" && exec 9>"$spool/lock" || die "no spool in $spool"
timeout "${BAYESD_LOCK_S:-20}" flock 9 || die "another process uses $spool"     # What a killed run was just calling may hold it for a moment.
rm -f "$spool/pipe" "$spool/out"; mkfifo "$spool/pipe" && exec 3<>"$spool/pipe" 4>"$spool/pipe" || die "no pipe in $spool"
now=$(date +%s) pads=''
if [ "${BAYESD_SIGN_KEY_FILE:-}" ]; then
    umask 077
    pad 0x36 >"$spool/pad.i" && pad 0x5c >"$spool/pad.o" && pads=$spool/pad || exit 1
fi
trap 'wanted=0' TERM INT
trap 'rm -f "$spool/out"' EXIT
(   # The ear and the clock. When nobody reads them any more, however the worker ended, they also end the training.
    trap '' PIPE INT TERM
    while { kill -0 "$ear" || listen; } && sleep "$tick_s" && echo tick; do :; done
    kill "$ear"; kill -KILL "-$(cat "$spool/pid.$run")"; rm -f "$spool/pid.$run"
) >&4 2>/dev/null 3<&- 4>&- 9<&- &
if [ -s "$lease" ]; then    # Another run left it. The first beat takes it over.
    key=$(jq -r '"\(.study).\(.trial).\(.fence)"' "$lease")
    case $(jq -r --arg study "$study" \
        'if .tell then "told" elif .study != $study then "foreign" else .starts end' "$lease") in
    told) told=1 ;;
    foreign) tell '{"state":"released"}' ;;
    1) train <"$lease" ;;
    *) tell '{"state":"fail","class":"crash","error":"the worker died twice during this trial"}' ;;
    esac
fi
while :; do
    IFS= read -r line <&3 || line=''    # A signal interrupts the read.
    now=$(date +%s)
    if [ "$wanted$leave_at" = 0 ]; then     # The first look after a SIGTERM: a clean exit gives everything back.
        leave_at=$((now + leave_s)); halt
        [ -z "$key" ] || [ "$told" ] || tell '{"state":"released"}'
        say
    fi
    case $line in
    tick)
        [ "$now" -lt "$beat_at" ] || beat
        [ "$now" -lt "$say_at" ] || say ;;
    'ended '*)
        training='' status=${line##* }; rm -f "$spool/pid.$run"
        [ -z "$key" ] || [ "$told" ] || tell "$(result "$status")"
        say ;;
    '{'*) ! believe || hear $(printf '%s\n' "$line" | jq -r "$words" 2>/dev/null) ;;
    esac
    [ -z "$leave_at" ] || [ "$now" -lt "$leave_at" ] || die "no answer within $leave_s s; the next start sends what is left"
    [ -z "$fenced" ] || [ "$told" ] || die "another process uses the name $name"
done
