package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
)

// mirrorEnv overrides the Debian mirror that is found in apt's configuration.
const mirrorEnv = "VBLK_EP_MIRROR"

// archive is a private view of Debian's archive: apt with lists, cache and an
// empty package database of its own. The rest of the machine's configuration
// (proxies, certificates, keys) stays in force, and apt checks signatures and
// checksums as always. Nothing is installed.
type archive struct {
	dir  string // apt's state, and the configuration file
	arch string // Debian's architecture name
}

// openArchive prepares a view of the release (a code name) with its updates,
// its security archive where the machine knows one, and the additional suites,
// and fetches the package lists. dir must exist and be empty.
func openArchive(ctx context.Context, dir, arch, release string, suites ...string) (*archive, error) {
	for _, tool := range []string{"apt-get", "apt-cache", "dpkg"} {
		if _, err := exec.LookPath(tool); err != nil {
			return nil, fmt.Errorf("the guest tools come from Debian's archive and need %s: %w", tool, err)
		}
	}
	mirrors, err := findMirrors(ctx, filepath.Join(dir, "machine"))
	if err != nil {
		return nil, err
	}
	var sources strings.Builder
	line := func(mirror, suite string) {
		fmt.Fprintf(&sources, "deb %s%s %s main\n", signedBy(), mirror, suite)
	}
	line(mirrors.main, release)
	line(mirrors.main, release+"-updates")
	if mirrors.security != "" {
		line(mirrors.security, release+"-security")
	}
	for _, suite := range suites {
		line(mirrors.main, suite)
	}
	a := &archive{dir: filepath.Join(dir, "own"), arch: arch}
	return a, a.update(ctx, sources.String())
}

// update fetches the package lists of the sources; without any, of the sources
// that the machine has configured.
func (a *archive) update(ctx context.Context, sources string) error {
	for _, sub := range []string{"state/lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(a.dir, sub), 0o755); err != nil {
			return err
		}
	}
	config := a.config()
	if sources != "" {
		config += a.ownSources()
	}
	for name, text := range map[string]string{
		"sources.list": sources,
		"status":       "",
		"apt.conf":     config,
	} {
		if err := os.WriteFile(filepath.Join(a.dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	_, err := a.run(ctx, "", "apt-get", "update")
	return err
}

// config is read by apt after all other configuration, so it wins.
func (a *archive) config() string {
	return fmt.Sprintf(`#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Pre-Invoke;
#clear DPkg::Post-Invoke;
#clear DPkg::Pre-Install-Pkgs;
#clear APT::Default-Release;
Dir::State "%[1]s/state";
Dir::State::status "%[1]s/status";
Dir::Cache "%[1]s/cache";
APT::Architecture "%[2]s";
APT::Architectures { "%[2]s"; };
APT::Sandbox::User "root";
APT::Install-Recommends "false";
APT::Install-Suggests "false";
APT::Keep-Downloaded-Packages "true";
APT::Update::Error-Mode "any";
Acquire::Retries "3";
Acquire::Languages { "none"; };
`, a.dir, a.arch)
}

// ownSources makes apt look at our sources alone.
func (a *archive) ownSources() string {
	return fmt.Sprintf(`Dir::Etc::sourcelist "%s/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
`, a.dir)
}

// closure unpacks the packages and everything they depend on below root. suite
// is the one to prefer; without one, the newest version of the release wins.
func (a *archive) closure(ctx context.Context, root, suite string, packages ...string) error {
	progress("fetching %s", strings.Join(packages, " "))
	args := append(prefer(suite), "-y", "--download-only", "install")
	args = append(args, packages...)
	if _, err := a.run(ctx, "", "apt-get", args...); err != nil {
		return err
	}
	return a.unpack(ctx, root, filepath.Join(a.dir, "cache/archives"))
}

// exactly unpacks the named packages and nothing else below root.
func (a *archive) exactly(ctx context.Context, root, suite string, packages ...string) error {
	progress("fetching %s", strings.Join(packages, " "))
	dir, err := os.MkdirTemp(a.dir, "debs-*")
	if err != nil {
		return err
	}
	args := append(prefer(suite), "download")
	args = append(args, packages...)
	if _, err := a.run(ctx, dir, "apt-get", args...); err != nil {
		return err
	}
	return a.unpack(ctx, root, dir)
}

func prefer(suite string) []string {
	if suite == "" {
		return nil
	}
	return []string{"-t", suite}
}

// unpack extracts and then removes every package in dir, and notes their names
// in root/packages.
func (a *archive) unpack(ctx context.Context, root, dir string) error {
	debs, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil {
		return err
	}
	if len(debs) == 0 {
		return errors.New("apt-get fetched no package")
	}
	slices.Sort(debs)
	var names strings.Builder
	for _, deb := range debs {
		if _, err := a.run(ctx, "", "dpkg", "-x", deb, root); err != nil {
			return err
		}
		fmt.Fprintln(&names, filepath.Base(deb))
		if err := os.Remove(deb); err != nil {
			return err
		}
	}
	for _, useless := range []string{"doc", "man", "info", "locale", "lintian", "bug"} {
		if err := os.RemoveAll(filepath.Join(root, "usr/share", useless)); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(root, "packages"), []byte(names.String()), 0o644)
}

var dependsLine = regexp.MustCompile(`(?m)^ +\|?Depends: ([a-z0-9][a-z0-9.+-]*)$`)

// depends returns what the package depends on directly.
func (a *archive) depends(ctx context.Context, suite, pkg string) ([]string, error) {
	out, err := a.run(ctx, "", "apt-cache", append(prefer(suite), "depends", pkg)...)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, m := range dependsLine.FindAllStringSubmatch(string(out), -1) {
		names = append(names, m[1])
	}
	return names, nil
}

// run runs one of apt's programs on the private view, or dpkg, in dir.
func (a *archive) run(ctx context.Context, dir, program string, args ...string) ([]byte, error) {
	if program != "dpkg" {
		args = append([]string{"-c", filepath.Join(a.dir, "apt.conf"), "-q"}, args...)
	}
	return output(ctx, dir, program, args...)
}

// output runs a program in the C locale and returns what it printed; the error
// carries the end of what it complained about.
func output(ctx context.Context, dir, program string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err,
			tail(stderr.String()+stdout.String(), 10))
	}
	return stdout.Bytes(), nil
}

// tail returns the last lines of the text.
func tail(text string, lines int) string {
	all := strings.Split(strings.TrimRight(text, "\n"), "\n")
	if len(all) > lines {
		all = all[len(all)-lines:]
	}
	return strings.Join(all, "\n")
}

type mirrors struct{ main, security string }

// findMirrors asks apt which mirror of Debian this machine uses. On a machine
// that has not read its package lists yet, they are read into dir.
func findMirrors(ctx context.Context, dir string) (mirrors, error) {
	if m := os.Getenv(mirrorEnv); m != "" {
		return mirrors{main: m}, nil
	}
	targets := []string{
		"indextargets", "--format", "$(ORIGIN)|$(LABEL)|$(REPO_URI)", "Created-By: Packages",
	}
	out, err := output(ctx, "", "apt-get", targets...)
	if err != nil {
		return mirrors{}, err
	}
	if m := parseTargets(string(out)); m.main != "" {
		return m, nil
	}
	progress("asking apt for a mirror of Debian")
	machine := &archive{dir: dir, arch: runtime.GOARCH}
	// Sources other than Debian's may fail; what counts is what was found.
	failed := machine.update(ctx, "")
	if out, err = machine.run(ctx, "", "apt-get", targets...); err != nil {
		return mirrors{}, err
	}
	if m := parseTargets(string(out)); m.main != "" {
		return m, nil
	}
	return mirrors{}, errors.Join(failed, fmt.Errorf(
		"apt's sources name no mirror of Debian: set %s to the address of one", mirrorEnv))
}

// parseTargets picks the mirrors out of lines of origin|label|address.
func parseTargets(text string) mirrors {
	var m mirrors
	for line := range strings.Lines(text) {
		f := strings.Split(strings.TrimSpace(line), "|")
		if len(f) != 3 || f[0] != "Debian" {
			continue
		}
		switch {
		case f[1] == "Debian" && m.main == "":
			m.main = f[2]
		case f[1] == "Debian-Security" && m.security == "":
			m.security = f[2]
		}
	}
	return m
}

// signedBy restricts the archive to Debian's own keys where the machine has
// them in the usual place.
func signedBy() string {
	for _, ring := range []string{
		"/usr/share/keyrings/debian-archive-keyring.pgp",
		"/usr/share/keyrings/debian-archive-keyring.gpg",
	} {
		if found, _ := exists(ring); found {
			return "[signed-by=" + ring + "] "
		}
	}
	return ""
}
