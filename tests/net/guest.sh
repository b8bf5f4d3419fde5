#!/bin/sh
# /init of the network tests. The kernel's command line says what is done:
#   net_kind=user|static   by DHCP and router advertisements, or with the addresses below
#   net_kind=vsock         no network, but connections to programs of the host
#   net_bytes=N net_connections=N net_bounce=1 net_forward=1
export PATH=/bin
mount -t devtmpfs none /dev
exec >/dev/console 2>&1 </dev/console
mount -t proc none /proc
mount -t sysfs none /sys
mount -t tmpfs none /tmp
for round in 1 2 3; do
    for module in /modules/*.ko; do
        [ ! -e "$module" ] || insmod "$module" 2>/dev/null
    done
done
net_kind=user net_bytes=1000000 net_connections=20 net_bounce= net_forward=
for word in $(cat /proc/cmdline); do
    case $word in net_*=*) eval "$word" ;; esac
done

part() { # NAME COMMAND...
    name=$1
    shift
    if output=$("$@" 2>&1); then
        echo "part $name: ok $output"
    else
        echo "part $name: FAILED $output"
    fi
}

try() { # SECONDS COMMAND...
    left=$(($1 * 5))
    shift
    until "$@" >/dev/null 2>&1; do
        left=$((left - 1))
        [ $left -gt 0 ] || return 1
        usleep 200000
    done
}

cat >/tmp/lease <<'END'
#!/bin/sh
case $1 in
bound | renew)
    ip addr flush dev $interface scope global
    ip addr add $ip/24 dev $interface
    ip route replace default via $router
    echo $ip >/tmp/ip
    echo $dns >/tmp/dns
    ;;
esac
END
chmod 755 /tmp/lease

has_ipv6() {
    ip -6 addr show dev eth0 | grep 'scope site\|scope global' | grep -v tentative | grep -q "$1"
}

leased() {
    udhcpc -i eth0 -s /tmp/lease -q -n -t 5 2>/dev/null && [ "$(cat /tmp/ip)" = 10.0.2.15 ] &&
        [ "$(cat /tmp/dns)" = 10.0.2.3 ]
}

bounced() { # the carrier went and came back since it was counted
    [ "$(cat /sys/class/net/eth0/carrier_changes)" -ge $((changes + 2)) ] &&
        [ "$(cat /sys/class/net/eth0/carrier)" = 1 ]
}

serve() { # the session waits for its word
    exercise serve "$@" >/dev/console
}

all() { # ADDRESS IPv4|IPv6
    part "get over $2" exercise get "$1" 5001 "$net_bytes"
    part "put over $2" exercise put "$1" 5001 "$net_bytes"
    part "short connections over $2" exercise short "$1" 5001 "$net_connections"
    part "half-closed over $2" exercise half "$1" 5001
    part "reset over $2" exercise reset "$1" 5001 $reset
    part "refused over $2" exercise refused "$1" 5099
    part "datagrams over $2" exercise udp "$1" 5001 100
}

if [ $net_kind = vsock ]; then
    part "get by vsock" exercise get vsock 5001 "$net_bytes"
    part "put by vsock" exercise put vsock 5001 "$net_bytes"
    part "short connections by vsock" exercise short vsock 5001 "$net_connections"
    part "half-closed by vsock" exercise half vsock 5001
    part "refused by vsock" exercise refused vsock 5099
    part "from outside by vsock" serve vsock 8000
    echo "part end: ok"
    poweroff -f
fi
ip link set lo up
ip link set eth0 up
if [ $net_kind = user ]; then
    part lease leased
    part "router advertisement" try 20 has_ipv6 fec0:
    part "name, A" exercise dns 10.0.2.3 server.test A 10.0.2.2
    part "name, AAAA" exercise dns 10.0.2.3 server.test AAAA fec0::2
    part "name, none" exercise dns 10.0.2.3 nobody.test none -
    part "name over IPv6" exercise dns fec0::3 server.test A 10.0.2.2
    part ping ping -q -c 1 -W 5 10.0.2.2
    # libslirp ends the other side of a connection that the guest resets, as if it were closed
    here=10.0.2.2 here6=fec0::2 reset=end
else
    ip addr add 192.168.77.2/24 dev eth0
    ip -6 addr add fd77::2/64 dev eth0
    part address try 20 has_ipv6 fd77:
    here=192.168.77.1 here6=fd77::1 reset=reset
    part ping ping -q -c 1 -W 5 $here
fi
all $here IPv4
all $here6 IPv6
if [ -n "$net_forward" ]; then
    part "forwarded port" serve 8000
fi
if [ -n "$net_bounce" ]; then
    changes=$(cat /sys/class/net/eth0/carrier_changes)
    echo "ready for a bounce"
    part "link bounce" try 20 bounced
    part "lease again" leased
    part "name again" exercise dns 10.0.2.3 server.test A 10.0.2.2
    part "get again" exercise get $here 5001 $net_bytes
fi
echo "part end: ok"
poweroff -f
