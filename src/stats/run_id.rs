//! The run that a dump's files are of: its name, and the check that all files have the same.

use std::fmt;
use std::path::Path;

use crate::error::{Error, Result, shortened};

/// The run's name. Readers refuse files of different runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunId<'a> {
    /// The name.
    pub name: &'a str,
    /// `None`: the name was chosen for the run. Otherwise it is made of the numbers of this launcher, `slurm` or `pmix`. Ranks of
    /// one run may differ in those, so readers only warn.
    pub launcher: Option<&'a str>,
}

impl<'a> From<&'a str> for RunId<'a> {
    /// A name that was chosen for the run.
    fn from(name: &'a str) -> Self {
        RunId { name, launcher: None }
    }
}

impl fmt::Display for RunId<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&shortened(self.name))?;
        self.launcher.map_or(Ok(()), |launcher| write!(f, " (from {})", shortened(launcher)))
    }
}

/// A [`RunId`] that owns its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OwnedRunId {
    name: String,
    launcher: Option<&'static str>,
}

impl OwnedRunId {
    /// The caller's name, or else that of the environment.
    pub fn choose(given: Option<&str>) -> Result<Option<Self>> {
        match given {
            Some(name) => Ok(Some(OwnedRunId { name: name.to_owned(), launcher: None })),
            None => Self::of_variables(|name| match std::env::var_os(name)?.into_string() {
                Ok(value) => Some(Ok(value)),
                Err(value) => {
                    Some(Err(Error::InvalidArgument(format!("{name} is {value:?}, which is not UTF-8"))))
                }
            }),
        }
    }

    pub fn borrow(&self) -> RunId<'_> {
        RunId { name: &self.name, launcher: self.launcher }
    }

    /// `EXPERT_STATISTIC_RUN_ID`, or else a name made of the launcher's numbers. An empty variable is taken as unset.
    fn of_variables(get: impl Fn(&str) -> Option<Result<String>>) -> Result<Option<Self>> {
        let get = |name: &str| get(name).transpose().map(|value| value.filter(|value| !value.is_empty()));
        if let Some(name) = get("EXPERT_STATISTIC_RUN_ID")? {
            return Ok(Some(OwnedRunId { name, launcher: None }));
        }
        if let Some(job) = get("SLURM_JOB_ID")? {
            // Ranks that were started by several steps, or by the jobs of a heterogeneous one, have different numbers.
            let step = get("SLURM_STEP_ID")?.map_or(String::new(), |step| format!(".{step}"));
            // A job that is restarted keeps its number. The count is set only then.
            let restarts = get("SLURM_RESTART_COUNT")?.filter(|count| count != "0");
            let restarts = restarts.map_or(String::new(), |count| format!("-restart{count}"));
            return Ok(Some(OwnedRunId { name: format!("{job}{step}{restarts}"), launcher: Some("slurm") }));
        }
        Ok(get("PMIX_NAMESPACE")?.map(|name| OwnedRunId { name, launcher: Some("pmix") }))
    }
}

/// Checks that no file has another name than the first. Only warns where both names are a launcher's, or missing.
pub(super) fn check(directory: &Path, files: &[(&Path, Option<RunId>)]) -> Result<()> {
    let Some(&(first, first_id)) = files.first() else { return Ok(()) };
    let name = |path: &Path| path.file_name().unwrap_or_default().display().to_string();
    let chosen = |id: Option<RunId>| id.is_some_and(|id| id.launcher.is_none());
    let mut others = files.iter().filter(|(_, id)| id.map(|id| id.name) != first_id.map(|id| id.name));
    if let Some((path, id)) = others.clone().find(|(_, id)| chosen(first_id) || chosen(*id)) {
        let (id, first_name, first_id) = (shown(*id), name(first), shown(first_id));
        let what = format!(
            "its run_id is {id}, that of {first_name} is {first_id}: the files are of different runs"
        );
        return Err(Error::InvalidDump(what).in_file(path));
    }
    let num_others = others.clone().count();
    if let Some((path, id)) = others.next() {
        log::warn!(
            "{}: the run_id of {} is {}, that of {} is {}; {num_others} of {} files differ from it. If the files are of several \
             runs, dump again. If one run has several ids, set EXPERT_STATISTIC_RUN_ID",
            directory.display(),
            name(path),
            shown(*id),
            name(first),
            shown(first_id),
            files.len()
        );
    }
    Ok(())
}

fn shown(id: Option<RunId>) -> String {
    match id {
        None => "none".to_owned(),
        Some(RunId { name, launcher: None }) => format!("\"{}\"", shortened(name)),
        Some(RunId { name, launcher: Some(launcher) }) => {
            format!("\"{}\" (from {})", shortened(name), shortened(launcher))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(variables: &[(&str, &str)]) -> Option<(String, Option<&'static str>)> {
        let get = |name: &str| {
            variables.iter().find(|(variable, _)| *variable == name).map(|(_, value)| Ok((*value).to_owned()))
        };
        OwnedRunId::of_variables(get).unwrap().map(|id| (id.name, id.launcher))
    }

    #[test]
    fn run_id_is_chosen_or_that_of_the_launcher() {
        let slurm = ("SLURM_JOB_ID", "1234");
        let pmix = ("PMIX_NAMESPACE", "prterun-node1-77@1");
        let is = |name: &str, launcher| Some((name.to_owned(), launcher));
        assert_eq!(chosen(&[]), None);
        assert_eq!(chosen(&[pmix]), is("prterun-node1-77@1", Some("pmix")));
        assert_eq!(chosen(&[pmix, slurm]), is("1234", Some("slurm")));
        assert_eq!(chosen(&[slurm, ("SLURM_STEP_ID", "0")]), is("1234.0", Some("slurm")));
        let restarted = [slurm, ("SLURM_STEP_ID", "5"), ("SLURM_RESTART_COUNT", "2")];
        assert_eq!(chosen(&restarted), is("1234.5-restart2", Some("slurm")));
        assert_eq!(chosen(&[slurm, ("SLURM_RESTART_COUNT", "0")]), is("1234", Some("slurm")));
        assert_eq!(chosen(&[slurm, pmix, ("EXPERT_STATISTIC_RUN_ID", "mine")]), is("mine", None));
        assert_eq!(chosen(&[pmix, ("EXPERT_STATISTIC_RUN_ID", ""), ("SLURM_JOB_ID", "")]), chosen(&[pmix]));
        // A step or a restart count alone names no run.
        assert_eq!(chosen(&[("SLURM_STEP_ID", "0"), ("SLURM_RESTART_COUNT", "1")]), None);
    }

    #[test]
    fn callers_run_id_is_taken_before_that_of_the_environment() {
        let id = OwnedRunId::choose(Some("given")).unwrap().unwrap();
        assert_eq!(id.borrow(), RunId::from("given"));
    }
}
