//! Every rule about what a payload may ask for.

use super::*;

fn plan_of(payload: &Value) -> Result<Plan, Refusal> {
    plan_with(payload, &Config::default())
}

fn plan_with(payload: &Value, config: &Config) -> Result<Plan, Refusal> {
    plan(payload.to_string().as_bytes(), config, Path::new("/job"))
}

fn file(plan: &Plan, path: &str) -> String {
    let (_, contents) = plan.files.iter().find(|(p, _)| p == path).unwrap();
    String::from_utf8(contents.clone()).unwrap()
}

fn json_file(plan: &Plan, path: &str) -> Value {
    serde_json::from_str(&file(plan, path)).unwrap()
}

/// A job with one more argument.
fn with(key: &str, value: Value) -> Value {
    let mut payload = json!({"module": "ping", "host_pattern": "all"});
    payload[key] = value;
    payload
}

#[test]
fn the_sample_payload() {
    let plan = plan_of(&json!({
        "module": "ping", "inventory": "localhost",
        "extravars": {"ansible_connection": "local"}, "host_pattern": "localhost",
    }))
    .unwrap();
    assert_eq!(
        Value::Object(plan.kwargs.clone()),
        json!({"module": "ping", "host_pattern": "localhost"})
    );
    assert_eq!(file(&plan, "inventory/hosts"), "localhost\n");
    assert_eq!(
        json_file(&plan, "env/extravars"),
        json!({
            "ansible_connection": "local",
            "ansible_python_interpreter": "{{ ansible_playbook_python }}",
            "ansible_remote_tmp": "/job/tmp",
        })
    );
    assert_eq!(
        json_file(&plan, "env/settings"),
        json!({"pexpect_timeout": 1})
    );
}

#[test]
fn an_interpreter_that_is_named_stays() {
    let extravars = json!({"ansible_connection": "local", "ansible_python_interpreter": "/opt/py"});
    let plan = plan_of(&with("extravars", extravars)).unwrap();
    assert_eq!(
        json_file(&plan, "env/extravars")["ansible_python_interpreter"],
        "/opt/py"
    );
    let mut payload = with("extravars", json!({"ansible_connection": "local"}));
    payload["inventory"] = json!("a ansible_python_interpreter=/opt/py");
    let plan = plan_of(&payload).unwrap();
    assert_eq!(
        json_file(&plan, "env/extravars").get("ansible_python_interpreter"),
        None
    );
    let plan = plan_of(&with("extravars", json!({"a": 1}))).unwrap();
    assert_eq!(json_file(&plan, "env/extravars"), json!({"a": 1}));
}

#[test]
fn inventories_become_files() {
    let ini = "[web]\nweb1 ansible_port=22\n";
    for (given, written) in [
        ("localhost", "localhost\n"),
        ("web1,", "web1\n"),
        ("web1, web2,web3", "web1\nweb2\nweb3\n"),
        (
            "web1 ansible_ssh_args='-o A,B'",
            "web1 ansible_ssh_args='-o A,B'\n",
        ),
        (ini, &format!("{ini}\n")),
    ] {
        let plan = plan_of(&with("inventory", json!(given))).unwrap();
        assert_eq!(file(&plan, "inventory/hosts"), written);
        assert_eq!(plan.kwargs.get("inventory"), None);
    }
    let plan = plan_of(&with("inventory", json!({"all": {"hosts": {"a": {}}}}))).unwrap();
    assert_eq!(
        json_file(&plan, "inventory/hosts.json"),
        json!({"all": {"hosts": {"a": {}}}})
    );
    let plan = plan_of(&with("inventory", json!(["a,b", {"all": {}}]))).unwrap();
    assert_eq!(file(&plan, "inventory/hosts-000"), "a\nb\n");
    assert_eq!(
        json_file(&plan, "inventory/hosts-001.json"),
        json!({"all": {}})
    );
    for bad in [
        json!(1),
        json!([1]),
        json!([["a"]]),
        json!(vec!["a"; MAX_INVENTORIES + 1]),
    ] {
        assert_eq!(
            plan_of(&with("inventory", bad)).unwrap_err(),
            wrong_inventory()
        );
    }
}

#[test]
fn secrets_become_files_and_never_arguments() {
    let mut payload = with("extravars", json!({"a": "canary"}));
    payload["envvars"] = json!({"A": "canary", "N": 1});
    payload["passwords"] = json!({"^Vault password:": "canary"});
    payload["ssh_key"] = json!("canary");
    payload["settings"] = json!({"pexpect_timeout": 3, "suppress_ansible_output": true});
    payload["inventory"] = json!("a ansible_password=canary");
    let plan = plan_of(&payload).unwrap();
    assert!(
        !Value::Object(plan.kwargs.clone())
            .to_string()
            .contains("canary")
    );
    assert_eq!(
        json_file(&plan, "env/envvars"),
        json!({"A": "canary", "N": "1"})
    );
    assert_eq!(
        json_file(&plan, "env/passwords"),
        json!({"^Vault password:": "canary"})
    );
    assert_eq!(file(&plan, "env/ssh_key"), "canary\n");
    assert_eq!(
        json_file(&plan, "env/settings"),
        json!({"pexpect_timeout": 3})
    );
}

#[test]
fn arguments_that_are_passed() {
    let plan = plan_of(&json!({
        "playbook": {"hosts": "all"}, "limit": "web*", "forks": 10, "verbosity": 2,
        "tags": ["a", "b"], "skip_tags": "c", "omit_event_data": true, "module_args": null,
        "ident": "../../x", "private_data_dir": "/etc", "quiet": true, "json_mode": true,
    }))
    .unwrap();
    assert_eq!(
        Value::Object(plan.kwargs),
        json!({
            "playbook": [{"hosts": "all"}], "limit": "web*", "forks": 10, "verbosity": 2,
            "tags": "a,b", "skip_tags": "c", "omit_event_data": true,
        })
    );
    let plan = plan_of(&with("module_args", json!({"cmd": "id"}))).unwrap();
    assert_eq!(plan.kwargs["module_args"], r#"{"cmd":"id"}"#);
}

#[test]
fn what_the_node_decides_is_refused_by_name() {
    for key in [
        "binary",
        "args",
        "artifact_dir",
        "project_dir",
        "fact_cache",
        "fact_cache_type",
        "container_workdir",
        "container_auth_data",
        "process_isolation_path",
        "process_isolation_show_paths",
        "directory_isolation_base_path",
        "logfile",
        "debug",
        "streamer",
        "_input",
        "_output",
        "suppress_env_files",
        "rotate_artifacts",
        "kwargs",
        "host_cwd",
    ] {
        let refusal = plan_of(&with(key, json!("x"))).unwrap_err();
        assert_eq!(refusal, Refusal::Key(key.to_owned()));
    }
    for key in [
        "fact_cache",
        "directory_isolation_base_path",
        "container_auth_data",
    ] {
        let refusal = plan_of(&with("settings", json!({key: "x"}))).unwrap_err();
        assert_eq!(refusal, Refusal::Key(format!("settings.{key}")));
    }
    let refusal = plan_of(&with("envvars", json!({"RECEPTOR_JOB_ID": "x"}))).unwrap_err();
    assert_eq!(refusal, Refusal::Key("envvars.RECEPTOR_JOB_ID".to_owned()));
}

#[test]
fn some_arguments_need_the_nodes_permission() {
    for key in PERMISSIBLE {
        let refusal = plan_of(&with(key, json!("x"))).unwrap_err();
        assert_eq!(refusal, Refusal::NotAllowed((*key).to_owned()));
        let refusal = plan_of(&with("settings", json!({*key: "x"}))).unwrap_err();
        assert_eq!(refusal, Refusal::NotAllowed((*key).to_owned()));
    }
    let config = Config {
        allow: PERMISSIBLE.iter().map(|key| (*key).to_owned()).collect(),
        ..Config::default()
    };
    let plan = plan_with(&with("cmdline", json!("--diff")), &config).unwrap();
    assert_eq!(file(&plan, "env/cmdline"), "--diff");
    let mut payload = with("process_isolation", json!(true));
    let plan = plan_with(&payload, &config).unwrap();
    assert_eq!(plan.isolation.as_deref(), Some("podman"));
    payload["process_isolation_executable"] = json!("docker");
    let plan = plan_with(&payload, &config).unwrap();
    assert_eq!(plan.isolation.as_deref(), Some("docker"));
    assert_eq!(plan.kwargs["process_isolation"], true);
}

#[test]
fn nothing_becomes_an_option_of_ansible() {
    for key in ["host_pattern", "limit", "module", "tags"] {
        let refusal = plan_of(&with(key, json!("-e@/etc/passwd"))).unwrap_err();
        assert_eq!(
            refusal,
            Refusal::Dash {
                key: key.to_owned()
            }
        );
    }
    let refusal = plan_of(&json!({"playbook": "-e@/etc/passwd"})).unwrap_err();
    assert!(matches!(refusal, Refusal::Dash { .. }));
}

#[test]
fn wrong_types_are_refused() {
    for (key, value) in [
        ("module", json!(1)),
        ("module_args", json!([1])),
        ("forks", json!(MAX_FORKS + 1)),
        ("forks", json!(-1)),
        ("verbosity", json!("v")),
        ("tags", json!([1])),
        ("omit_event_data", json!("yes")),
        ("extravars", json!("@file")),
        ("envvars", json!([])),
        ("envvars", json!({"A": [1]})),
        ("passwords", json!({"a": 1})),
        ("ssh_key", json!(1)),
        ("settings", json!([])),
        ("timeout", json!(0)),
    ] {
        let refusal = plan_of(&with(key, value.clone())).unwrap_err();
        assert!(
            matches!(refusal, Refusal::Type { .. }),
            "{key} {value}: {refusal}"
        );
    }
    for playbook in [json!(1), json!([]), json!(["a"])] {
        let refusal = plan_of(&json!({"playbook": playbook})).unwrap_err();
        assert!(matches!(refusal, Refusal::Type { .. }), "{refusal}");
    }
}

#[test]
fn exactly_one_thing_to_run() {
    assert_eq!(plan_of(&json!({})).unwrap_err(), Refusal::NotOne(0));
    let both = json!({"module": "ping", "playbook": "a.yml", "host_pattern": "all"});
    assert_eq!(plan_of(&both).unwrap_err(), Refusal::NotOne(2));
    assert_eq!(
        plan_of(&json!({"module": "ping"})).unwrap_err(),
        Refusal::NoHosts
    );
}

#[test]
fn times_can_only_get_shorter() {
    let mut payload = with("timeout", json!(60));
    payload["settings"] = json!({"job_timeout": 30, "idle_timeout": 20});
    payload["receptor"] = json!({"timeout_s": 90});
    let plan = plan_of(&payload).unwrap();
    assert_eq!(plan.timeout, Some(Duration::from_secs(30)));
    assert_eq!(plan.idle_timeout, Some(Duration::from_secs(20)));
}

#[test]
fn options_for_the_plugin() {
    let plan = plan_of(&with(
        "receptor",
        json!({"events": "failed", "max_event_bytes": 1024, "artifacts": false, "keep": false}),
    ))
    .unwrap();
    assert_eq!(plan.options.events, Events::Failed);
    assert!(plan.options.fail_on_no_hosts);
    for bad in [
        json!({"evnts": "all"}),
        json!({"events": "some"}),
        json!({"max_event_bytes": 1}),
        json!({"artifacts": "yes"}),
        json!({"keep": true}),
        json!(1),
    ] {
        assert!(matches!(
            plan_of(&with("receptor", bad)),
            Err(Refusal::Options(_))
        ));
    }
}

#[test]
fn projects_are_the_nodes() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("hosts"), "").unwrap();
    let config = Config {
        projects: [("web".to_owned(), dir.path().to_owned())].into(),
        ..Config::default()
    };
    let payload = json!({"project": "web", "playbook": "site.yml", "inventory": "hosts"});
    let plan = plan_with(&payload, &config).unwrap();
    assert_eq!(plan.project.as_deref(), Some(dir.path()));
    assert_eq!(
        plan.kwargs["inventory"],
        dir.path().join("hosts").to_str().unwrap()
    );
    let payload = json!({"project": "web", "playbook": "site.yml", "inventory": "../hosts"});
    let plan = plan_with(&payload, &config).unwrap();
    assert_eq!(file(&plan, "inventory/hosts"), "../hosts\n");
    let payload = json!({"project": "other", "playbook": "site.yml"});
    let refusal = plan_with(&payload, &config).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "the project \"other\" is not one of this node's: web"
    );
    let payload = json!({"project": "web", "playbook": [{"hosts": "all"}]});
    assert_eq!(
        plan_with(&payload, &config).unwrap_err(),
        Refusal::ProjectPlaybook
    );
}

#[test]
fn other_forms_are_refused_with_their_name() {
    let tar = [[0; 257].as_slice(), b"ustar\0"].concat();
    for (payload, form) in [
        (b"PK\x03\x04zip".as_slice(), "a zip archive"),
        (b"\x1f\x8bgzip", "a tar archive"),
        (&tar, "a tar archive"),
        (
            b"{\"kwargs\": {}}\n{\"eof\": true}\n",
            "a stream of ansible-runner transmit",
        ),
    ] {
        let refusal = plan(payload, &Config::default(), Path::new("/job")).unwrap_err();
        assert_eq!(refusal, Refusal::Form(form));
    }
    let read = |payload: &[u8]| plan(payload, &Config::default(), Path::new("/job")).unwrap_err();
    assert_eq!(read(b" \n"), Refusal::Empty);
    assert_eq!(read(b"[]"), Refusal::NoObject);
    let refusal = read(b"{\"password\": \"canary");
    assert!(
        matches!(&refusal, Refusal::NoJson(where_) if !where_.contains("canary")),
        "{refusal}"
    );
}

#[test]
fn pretty_json_is_json() {
    let payload = serde_json::to_vec_pretty(&with("limit", json!("a"))).unwrap();
    assert!(plan(&payload, &Config::default(), Path::new("/job")).is_ok());
}
