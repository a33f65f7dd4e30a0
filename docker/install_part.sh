#!/bin/sh
# install_part.sh NAME: puts /parts/NAME.txt under /layer, as it will lie in the image.
# `build` installs what makes wheels into the installer itself; `wheel` makes Headrace's own and puts that under /layer.
#
# pip's own sources come first. Where they do not have torch for the CPU, PyTorch's index does.
# Byte code is compiled here, because a container that may write nowhere would compile it at each start. On CPUs,
# torch's tests stay behind, and what only a compiler asks for.
set -eu

name=$1
installer=/opt/installer/bin/python
if [ -s /run/ca-certificates.crt ]; then
    export PIP_CERT=/run/ca-certificates.crt
fi
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_COMPILE=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore
export PIP_FIND_LINKS=/wheels

into_layer() {
    "$installer" -m pip --python /opt/headrace/bin/python install --no-deps --no-warn-script-location --root /layer "$@"
}

locked() {
    into_layer --require-hashes --requirement "/parts/$name.txt" "$@"
}

case $name in
torch)
    locked || { [ -n "${TORCH_INDEX:-}" ] && locked --index-url "$TORCH_INDEX"; }
    ;;
build)
    "$installer" -m pip install --no-deps --require-hashes --requirement /parts/build.txt
    exit
    ;;
wheel)
    "$installer" -m pip wheel --no-deps --no-index --no-build-isolation --wheel-dir /dist .
    into_layer --no-index /dist/*.whl
    ;;
*)
    locked
    ;;
esac
if [ "$ACCELERATOR" = cpu ]; then
    torch=$(echo /layer/opt/headrace/lib/python*/site-packages/torch)
    rm -rf "$torch/test" "$torch/include" "$torch"/bin/test_* "$torch"/bin/protoc*
    find /layer -name '*.a' -delete
fi
# Some packages bring files for other versions of Python, which do not compile.
"$installer" -m compileall -qq -j 0 -s /layer /layer || true
