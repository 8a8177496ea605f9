systemd-tmpfiles --create kring-agent.conf || :
if [ "$1" -eq 1 ]; then systemctl --no-reload preset kring-agent.service >/dev/null 2>&1 || :; fi
if [ -d /run/systemd/system ]; then systemctl daemon-reload || :; fi
