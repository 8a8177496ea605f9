systemd-sysusers kring-controller.conf || :
systemd-tmpfiles --create kring-controller.conf || :
chgrp kring /etc/kring/controller.toml && chmod 640 /etc/kring/controller.toml || :
if [ "$1" -eq 1 ]; then systemctl --no-reload preset kring-controller.service >/dev/null 2>&1 || :; fi
if [ -d /run/systemd/system ]; then systemctl daemon-reload || :; fi
