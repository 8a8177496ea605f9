systemd-tmpfiles --create kring-controller.conf || :
if [ "$1" -eq 1 ]; then systemctl --no-reload preset kring-controller.service >/dev/null 2>&1 || :; fi
if [ -d /run/systemd/system ]; then systemctl daemon-reload || :; fi
