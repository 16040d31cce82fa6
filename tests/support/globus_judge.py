"""The verdict of Globus' own library on credential files: `python globus_judge.py TRUST_DIR < names-of-files`.

One line each: OK, UNREADABLE or REFUSED and why. This is what a gatekeeper does with the chain of a client
(globus_gsi_cred_read_proxy, globus_gsi_cred_verify_cert_chain). A process of its own: the library reads the environment
and brings another OpenSSL.
"""

from __future__ import annotations

import ctypes
import sys


def main(directory: str) -> None:
    common = ctypes.CDLL("libglobus_common.so.0", mode=ctypes.RTLD_GLOBAL)
    callback = ctypes.CDLL("libglobus_gsi_callback.so.0", mode=ctypes.RTLD_GLOBAL)
    credential = ctypes.CDLL("libglobus_gsi_credential.so.1", mode=ctypes.RTLD_GLOBAL)
    common.globus_error_get.restype = ctypes.c_void_p
    common.globus_error_get.argtypes = [ctypes.c_uint]
    common.globus_error_print_chain.restype = ctypes.c_void_p
    common.globus_error_print_chain.argtypes = [ctypes.c_void_p]
    for function in (credential.globus_gsi_cred_read_proxy, credential.globus_gsi_cred_verify_cert_chain):
        function.restype = ctypes.c_uint
    module = ctypes.c_char.in_dll(credential, "globus_i_gsi_credential_module")
    if common.globus_module_activate(ctypes.byref(module)) != 0:
        raise SystemExit("Globus cannot be started")

    def why(result: int) -> str:
        text = common.globus_error_print_chain(common.globus_error_get(result))
        return ctypes.string_at(text).decode(errors="replace").replace("\n", " | ")[-250:] if text else "?"

    for line in sys.stdin:
        handle, data = ctypes.c_void_p(), ctypes.c_void_p()
        credential.globus_gsi_cred_handle_init(ctypes.byref(handle), None)
        if result := credential.globus_gsi_cred_read_proxy(handle, line.strip().encode()):
            print("UNREADABLE", why(result))
            continue
        callback.globus_gsi_callback_data_init(ctypes.byref(data))
        callback.globus_gsi_callback_set_cert_dir(data, directory.encode())
        result = credential.globus_gsi_cred_verify_cert_chain(handle, data)
        print("OK" if result == 0 else f"REFUSED {why(result)}")
        callback.globus_gsi_callback_data_destroy(data)
        credential.globus_gsi_cred_handle_destroy(handle)


if __name__ == "__main__":
    main(sys.argv[1])
