#!/bin/sh
# Runs a Python payload with the interpreter and the packages of the VO's software area at this site.
: "${VO_CMS_SW_DIR:?this site has no software area for cms}"
exec "$VO_CMS_SW_DIR/bin/python3" -S "$@"
