# bash completion for doppel, made by 'doppel completion bash'
_doppel_words() {
    mapfile -t COMPREPLY < <(compgen -W "$1" -- "$cur")
}
_doppel_files() {
    compopt -o filenames
    mapfile -t COMPREPLY < <(compgen "$1" -- "$cur")
}
_doppel() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]}
    local command=${COMP_WORDS[1]} options='' words='' names=none
    COMPREPLY=()
    if ((COMP_CWORD == 1)); then
        _doppel_words 'run launch image list show console logs ssh cp start stop restart pause resume reset rename rm stats disk doctor completion help'
        return
    fi
    case $command:$prev in
    run:--kernel)
        _doppel_files -f
        return
        ;;
    run:--initrd)
        _doppel_files -f
        return
        ;;
    run:--append)
        return
        ;;
    run:--module)
        _doppel_files -f
        return
        ;;
    run:--memory)
        return
        ;;
    run:--cpus)
        return
        ;;
    run:--cpu-model)
        _doppel_words "v2 v3 host"
        return
        ;;
    run:--engine)
        _doppel_words "auto translate interp"
        return
        ;;
    run:--disk)
        _doppel_files -f
        return
        ;;
    run:--net)
        _doppel_words "none user tap"
        return
        ;;
    run:--publish)
        return
        ;;
    run:--share)
        _doppel_files -d
        return
        ;;
    run:--vsock)
        return
        ;;
    run:--console)
        _doppel_words "stdio virtio file="
        return
        ;;
    run:--debug-exit)
        return
        ;;
    run:--name)
        return
        ;;
    run:--time)
        _doppel_words "host instructions"
        return
        ;;
    run:--trace)
        return
        ;;
    run:--trace-file)
        _doppel_files -f
        return
        ;;
    run:--symbols)
        _doppel_files -f
        return
        ;;
    run:--cloud-init)
        _doppel_files -f
        return
        ;;
    run:--ssh-key)
        _doppel_files -f
        return
        ;;
    run:--user)
        return
        ;;
    run:--hostname)
        return
        ;;
    run:--gdb)
        return
        ;;
    run:--jail)
        _doppel_words "on off"
        return
        ;;
    launch:--kernel)
        _doppel_files -f
        return
        ;;
    launch:--initrd)
        _doppel_files -f
        return
        ;;
    launch:--append)
        return
        ;;
    launch:--module)
        _doppel_files -f
        return
        ;;
    launch:--memory)
        return
        ;;
    launch:--cpus)
        return
        ;;
    launch:--cpu-model)
        _doppel_words "v2 v3 host"
        return
        ;;
    launch:--engine)
        _doppel_words "auto translate interp"
        return
        ;;
    launch:--disk)
        _doppel_files -f
        return
        ;;
    launch:--net)
        _doppel_words "none user tap"
        return
        ;;
    launch:--publish)
        return
        ;;
    launch:--share)
        _doppel_files -d
        return
        ;;
    launch:--vsock)
        return
        ;;
    launch:--console)
        _doppel_words "stdio virtio file="
        return
        ;;
    launch:--debug-exit)
        return
        ;;
    launch:--name)
        return
        ;;
    launch:--time)
        _doppel_words "host instructions"
        return
        ;;
    launch:--trace)
        return
        ;;
    launch:--trace-file)
        _doppel_files -f
        return
        ;;
    launch:--symbols)
        _doppel_files -f
        return
        ;;
    launch:--cloud-init)
        _doppel_files -f
        return
        ;;
    launch:--ssh-key)
        _doppel_files -f
        return
        ;;
    launch:--user)
        return
        ;;
    launch:--hostname)
        return
        ;;
    launch:--gdb)
        return
        ;;
    launch:--jail)
        _doppel_words "on off"
        return
        ;;
    ssh:--timeout)
        return
        ;;
    cp:--timeout)
        return
        ;;
    stop:--timeout)
        return
        ;;
    restart:--timeout)
        return
        ;;
    esac
    case $command in
    run)
        options=' --kernel --initrd --append --module --memory --cpus --cpu-model --engine --disk --net --publish --share --vsock --console --debug-exit --no-reboot --name --time --trace --trace-file --perf-map --symbols --cloud-init --ssh-key --user --hostname --no-autologin --keep --rm --gdb --jail -v'
        names=images
        ;;
    launch)
        options=' --kernel --initrd --append --module --memory --cpus --cpu-model --engine --disk --net --publish --share --vsock --console --debug-exit --no-reboot --name --time --trace --trace-file --perf-map --symbols --cloud-init --ssh-key --user --hostname --no-autologin --keep --rm --gdb --jail -v'
        names=images
        ;;
    image)
        options=''
        names=none
        ((COMP_CWORD > 2)) || words='build add list inspect rm prune'
        ;;
    list)
        options=' --json'
        names=none
        ;;
    show)
        options=' --json'
        names=all
        ;;
    console)
        options=''
        names=running
        ;;
    logs)
        options=' -f --follow --messages'
        names=kept
        ;;
    ssh)
        options=' --timeout'
        names=running
        ;;
    cp)
        options=' -r --timeout'
        names=running
        ;;
    start)
        options=' --console --json'
        names=stopped
        ;;
    stop)
        options=' --force --timeout --json'
        names=running
        ;;
    restart)
        options=' --force --timeout --json'
        names=kept
        ;;
    pause)
        options=' --json'
        names=running
        ;;
    resume)
        options=' --json'
        names=running
        ;;
    reset)
        options=' --json'
        names=running
        ;;
    rename)
        options=''
        names=stopped
        ;;
    rm)
        options=' --force --json'
        names=kept
        ;;
    stats)
        options=' --json --watch'
        names=running
        ;;
    disk)
        options=''
        names=none
        ((COMP_CWORD > 2)) || words='create info check'
        ;;
    doctor)
        options=' --json'
        names=none
        ;;
    completion)
        options=''
        names=none
        ((COMP_CWORD > 2)) || words='bash zsh fish'
        ;;
    help)
        options=''
        names=none
        ;;
    esac
    if [[ $cur == -* ]]; then
        _doppel_words "$options"
    elif [[ -n $words ]]; then
        _doppel_words "$words"
    elif [[ $names != none ]]; then
        _doppel_words "$(doppel completion names "$names" 2>/dev/null)"
        if [[ $command == cp ]]; then
            compopt -o nospace
            COMPREPLY=("${COMPREPLY[@]/%/:}")
            mapfile -t -O ${#COMPREPLY[@]} COMPREPLY < <(compgen -f -- "$cur")
        fi
    elif [[ $command == help ]]; then
        _doppel_words 'run launch image list show console logs ssh cp start stop restart pause resume reset rename rm stats disk doctor completion help keys status'
    fi
}
complete -F _doppel doppel
