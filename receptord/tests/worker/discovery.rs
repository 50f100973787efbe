//! Plugins that come, change and go while the host runs.

use std::os::unix::fs::symlink;

use receptord::worker::{Command, PluginDir};
use tokio::sync::oneshot;

use crate::rig::{Rig, chmod, install, put, run};

/// A shell plugin of this name and version.
fn shell(name: &str, version: &str) -> String {
    format!(
        r#"#!/bin/sh
echo '{{"type":"hello","protocol":1,"name":"{name}","version":"{version}","actions":{{"execute":{{"payload":"none","output":"text"}}}}}}'
read -r hello || exit 0
read -r job || exit 0
echo {version}
"#
    )
}

#[test]
fn a_plugin_is_dropped_in_replaced_and_removed() {
    run(async {
        let mut rig = Rig::new(&[], |_| {}).await;
        assert_eq!(rig.advertised(), Vec::<&str>::new());
        let dir = rig.dirs[0].clone();
        put(&dir, "uptime", &shell("uptime", "1.0"));
        rig.until_advertised(|c| c.len() == 1 && c[0].version == "1.0" && c[0].ready)
            .await;
        assert_eq!(rig.capabilities.as_ref().unwrap()[0].actions, ["execute"]);
        let work = rig.run("uptime:execute", "").await;
        assert_eq!(work.data[0].bytes, "1.0");

        put(&dir, "uptime", &shell("uptime", "2.0"));
        rig.until_advertised(|c| c.len() == 1 && c[0].version == "2.0")
            .await;
        let work = rig.run("uptime:execute", "").await;
        assert_eq!(work.data[0].bytes, "2.0");

        std::fs::remove_file(dir.join("uptime")).unwrap();
        rig.until_advertised(<[_]>::is_empty).await;
        let work = rig.run("uptime:execute", "").await;
        assert_eq!(work.code(), "no-such-plugin");
        rig.stop().await;
    });
}

#[test]
fn a_file_is_written_in_place_and_made_executable_afterwards() {
    run(async {
        let mut rig = Rig::new(&[], |_| {}).await;
        let path = rig.dirs[0].join("uptime.sh");
        std::fs::write(&path, shell("uptime", "1.0")).unwrap();
        chmod(&path, 0o644);
        let reason = rig.why_not("uptime").await;
        assert!(reason.contains("chmod +x"), "{reason}");
        chmod(&path, 0o755);
        rig.until_advertised(|c| c.len() == 1).await;
        std::fs::write(&path, shell("uptime", "1.1")).unwrap();
        rig.until_advertised(|c| c.len() == 1 && c[0].version == "1.1")
            .await;
        rig.stop().await;
    });
}

#[test]
fn a_mask_hides_and_uncovers() {
    run(async {
        let mut rig = Rig::new(&[], |_| {}).await;
        put(&rig.dirs[1], "uptime", &shell("uptime", "1.0"));
        rig.until_advertised(|c| c.len() == 1).await;
        let mask = rig.dirs[0].join("uptime");
        symlink("/dev/null", &mask).unwrap();
        rig.until_advertised(<[_]>::is_empty).await;
        let list = rig.list().await;
        assert!(list["uptime"].masked);
        let work = rig.run("uptime:execute", "").await;
        assert_eq!(work.code(), "no-such-plugin");
        std::fs::remove_file(mask).unwrap();
        rig.until_advertised(|c| c.len() == 1).await;
        // An administrator's own goes before the packaged one.
        put(&rig.dirs[0], "uptime.sh", &shell("uptime", "local"));
        rig.until_advertised(|c| c[0].version == "local").await;
        rig.stop().await;
    });
}

#[test]
fn the_file_that_a_link_leads_to_is_watched() {
    run(async {
        let mut rig = Rig::new(&[], |_| {}).await;
        let elsewhere = rig.root().join("opt");
        std::fs::create_dir(&elsewhere).unwrap();
        chmod(&elsewhere, 0o755);
        put(&elsewhere, "the-program", &shell("uptime", "1.0"));
        symlink(elsewhere.join("the-program"), rig.dirs[0].join("uptime")).unwrap();
        rig.until_advertised(|c| c.len() == 1 && c[0].version == "1.0")
            .await;
        put(&elsewhere, "the-program", &shell("uptime", "2.0"));
        rig.until_advertised(|c| c.len() == 1 && c[0].version == "2.0")
            .await;
        rig.stop().await;
    });
}

#[test]
fn a_directory_that_appears_later_counts() {
    run(async {
        let mut rig = Rig::new(&[], |config| {
            let root = config.data_dir.parent().unwrap().to_owned();
            config.dirs = vec![PluginDir::new(root.join("opt/acme/plugins"))];
        })
        .await;
        let root = rig.root();
        let dir = root.join("opt/acme/plugins");
        for part in ["opt", "opt/acme", "opt/acme/plugins"] {
            std::fs::create_dir(root.join(part)).unwrap();
            chmod(&root.join(part), 0o755);
        }
        put(&dir, "uptime", &shell("uptime", "1.0"));
        rig.until_advertised(|c| c.len() == 1).await;
        // And again, after it was gone with all above it.
        std::fs::remove_dir_all(root.join("opt")).unwrap();
        rig.until_advertised(<[_]>::is_empty).await;
        std::fs::create_dir_all(&dir).unwrap();
        for part in ["opt", "opt/acme", "opt/acme/plugins"] {
            chmod(&root.join(part), 0o755);
        }
        put(&dir, "uptime", &shell("uptime", "2.0"));
        rig.until_advertised(|c| c.len() == 1).await;
        rig.stop().await;
    });
}

#[test]
fn what_others_could_have_written_is_refused_until_that_is_mended() {
    run(async {
        let mut rig = Rig::new(&[], |_| {}).await;
        let dir = rig.dirs[0].clone();
        put(&dir, "uptime", &shell("uptime", "1.0"));
        rig.until_advertised(|c| c.len() == 1).await;
        chmod(&dir.join("uptime"), 0o775);
        rig.until_advertised(<[_]>::is_empty).await;
        let reason = rig.why_not("uptime").await;
        let mend = format!("chmod go-w {}", dir.join("uptime").display());
        assert!(reason.ends_with(&mend), "{reason}");
        let work = rig.run("uptime:execute", "").await;
        assert_eq!(work.code(), "plugin-start");
        assert!(work.error().message.contains(&mend), "{work:?}");
        assert_eq!(work.error().detail["retryable"], false);
        chmod(&dir.join("uptime"), 0o755);
        rig.until_advertised(|c| c.len() == 1).await;
        rig.stop().await;
    });
}

#[test]
fn works_that_wait_for_a_description_are_not_lost() {
    run(async {
        let mut rig = Rig::prepared(&["rogue"], |_| {});
        // Before the host has even looked.
        let first = rig.send("rogue:good", "1").await;
        let unknown = rig.send("rogue:no-such", "1").await;
        rig.finish(first).await.result();
        assert_eq!(rig.finish(unknown).await.code(), "no-such-action");
        rig.stop().await;
    });
}

#[test]
fn a_plugin_becomes_ready_without_a_change_of_its_file() {
    run(async {
        let mut rig = Rig::new(&[], |config| {
            config.times.ask_again = std::time::Duration::from_millis(200);
        })
        .await;
        let flag = rig.root().join("installed");
        let text = format!(
            r#"#!/bin/sh
if test -e {}; then ready=true; else ready=false; fi
echo '{{"type":"hello","protocol":1,"name":"picky","version":"1","ready":'$ready',"reason":"ansible-runner not found in PATH","actions":{{"execute":{{}}}}}}'
read -r hello || exit 0
"#,
            flag.display()
        );
        put(&rig.dirs[0], "picky", &text);
        rig.until_advertised(|c| c.len() == 1 && !c[0].ready).await;
        std::fs::write(flag, "").unwrap();
        rig.until_advertised(|c| c.len() == 1 && c[0].ready).await;
        rig.stop().await;
    });
}

#[test]
fn a_rescan_and_a_restart_are_answered() {
    run(async {
        let mut rig = Rig::new(&["rogue"], |_| {}).await;
        rig.command(Command::Rescan).await;
        install(&rig.dirs[0], "other");
        rig.until_advertised(|c| c.len() == 2).await;
        for (name, is_there) in [("rogue", true), ("nobody", false)] {
            let (reply, answer) = oneshot::channel();
            let name = name.to_owned();
            rig.command(Command::RestartPlugin { name, reply }).await;
            assert_eq!(answer.await, Ok(is_there));
        }
        rig.run("rogue:good", "1").await.result();
        rig.stop().await;
    });
}
