import json

from agents.user_interface import endpoints

FILE = {
    "grid": "lab",
    "organisation": "/O=Lab",
    "endpoints": {"myproxy": [{"name": "myproxy.LAB", "site": "LAB", "host": "localhost", "rpc": 1, "myproxy": 7512}]},
}


def test_grid_env_names_the_credential_store_to_myproxy_clients(tmp_path):
    path = tmp_path / "endpoints.json"
    path.write_text(json.dumps(FILE))
    found = endpoints.read_file(path)
    assert endpoints.myproxy_variables(found) == {
        "MYPROXY_SERVER": "localhost",
        "MYPROXY_SERVER_PORT": "7512",
        "MYPROXY_SERVER_DN": "/O=Lab/OU=LAB/CN=myproxy/myproxy.LAB",
    }
    path.write_text(json.dumps(endpoints.as_data(found)))  # grid env --file, for another machine
    assert endpoints.myproxy_variables(endpoints.read_file(path)) == endpoints.myproxy_variables(found)


def test_grid_env_without_a_credential_store_or_its_name(tmp_path):
    path = tmp_path / "endpoints.json"
    path.write_text(json.dumps({"endpoints": {}}))
    assert endpoints.myproxy_variables(endpoints.read_file(path)) == {}
    path.write_text(json.dumps({**FILE, "organisation": ""}))
    assert "MYPROXY_SERVER_DN" not in endpoints.myproxy_variables(endpoints.read_file(path))
